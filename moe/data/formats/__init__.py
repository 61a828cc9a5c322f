"""The formats that sources read, each with its checks."""
