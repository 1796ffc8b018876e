"""The controller's side of an instance: registration, heartbeats, reports, full sync, control socket."""
