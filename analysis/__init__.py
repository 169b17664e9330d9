"""Studies on top of the library: they arrange, repeat and draw; no mathematics lives here."""
