"""Where artefacts live: frames, documents and bundles, written atomically."""
