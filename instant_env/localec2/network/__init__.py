"""The seam to the virtual network: the netd process, addresses, and the documents that IMDS serves."""
