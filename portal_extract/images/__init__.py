"""Where pixels come from: OME-Zarr (S3, HTTPS, local) and MRC, and the readers of their parts."""
