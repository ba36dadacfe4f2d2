"""The command line: `isthmus train`, `isthmus show`, `isthmus report`, `isthmus probe`."""
