"""The integrations with the real packages: `make integrations`. Without a package its tests are skipped."""
