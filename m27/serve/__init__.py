"""HTTP: the media gate that untrusted bytes come in by, and what answers requests behind it."""
