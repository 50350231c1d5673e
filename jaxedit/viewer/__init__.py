"""Looking at a fitted scene in a browser.

`pictures` draws, `session` decides what is drawn when, `following` reads what a running fit writes, `server` shows it all
with viser. Each knows only those before it.
"""
