"""Look at a cell set: cells by type on the terminal, outlines on pixels as a PNG."""

import sys

from cellmill.show import main

if __name__ == "__main__":
    sys.exit(main())
