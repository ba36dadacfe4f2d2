"""What each figure shows, said once; `web` and `printed` draw it."""
