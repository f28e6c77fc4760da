package runner_test

import "net"

func listen(socket string) (net.Listener, error) { return net.Listen("unix", socket) }
