"""Every paper's round at full size, compiled for accelerators that need not be there.

chips.py says what is known of a chip, rows.py what a row is, papers.py has the rows, compiling.py compiles one of them,
hlo.py reads what the compiler wrote, measuring.py runs one on the device that is here, and command.py is the command.
"""
