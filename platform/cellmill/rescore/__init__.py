"""A second opinion: a heavy model scores the cells that a query chooses, and only the tiles that hold them are read."""
