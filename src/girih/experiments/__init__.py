"""One module for each reproduction of the papers; `girih.experiments.registry` lists and runs them."""
