"""Drapes on jet constituents: kinematics of the jets, then their constituents."""
