"""From dense maps to cells: flow targets, decoders, outlines and measures. Arrays in, arrays and tables out."""
