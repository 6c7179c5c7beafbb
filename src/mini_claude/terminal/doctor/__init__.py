"""`mini-claude doctor`: what could keep the server from working, looked at part by part."""
