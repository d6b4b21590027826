"""`python -m handscroll`, for launchers such as `torchrun -m handscroll train RECIPE`."""

from handscroll.cli.main import main

main()
