"""One job folder, worked through by one process: the only place that orders the rooms below within a process."""
