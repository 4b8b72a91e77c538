"""Every public function on a table of edges, on every backend, against mpmath: see judge.py for the rule."""
