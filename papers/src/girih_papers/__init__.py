"""One module for each reproduction of the papers; `girih_papers.registry` lists and runs them."""
