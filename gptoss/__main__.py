"""`python -m gptoss` is the `gptoss` command."""

import sys

from gptoss.cli import main

sys.exit(main())
