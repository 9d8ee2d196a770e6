"""The base model: loading, precision (codecs and storage), the map of its linear layers. Not covered: adapters."""
