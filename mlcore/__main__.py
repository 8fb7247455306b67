"""`python -m mlcore` is `mlcore`."""

from mlcore.cli import main

raise SystemExit(main())
