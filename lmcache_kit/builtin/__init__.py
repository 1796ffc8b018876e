"""The plugins that come with the core, registered by the same call as anyone's."""
