"""The cohort report: a folder of plain pages that a lab puts on a share and anyone opens in a browser."""
