"""An embedded portal (API and object store) with a simulated data set."""
