"""Looking at a fitted scene in a browser: `session` decides what is drawn, `server` shows it with viser."""
