"""Files to one event schema: readers, features, processors' plumbing, skims.

Import from the modules: this package imports nothing by itself, so that ``drapes --help`` stays fast.
"""
