"""Joint densities of tables, imputation and anomalies: girih's `TableModel` beside its rivals at their best.

    python benchmarks/tables.py --out DIR [--quick] [--part density] [--only TABLE] [--only-model MODEL] [--raw]

See `benchmarks/tables/__init__.py` for the protocol.
"""

from tables.main import main

if __name__ == "__main__":
    main()
