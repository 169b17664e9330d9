"""Studies on top of the library: they configure, repeat and plot."""
