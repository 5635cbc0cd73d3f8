"""What tests make and start: photos, manifests, adapters, servers."""
