"""What the routers do, to look at."""
