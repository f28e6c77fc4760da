package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestNotifyReady(t *testing.T) {
	if err := notifyReady(""); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	if err := notifyReady("vsock:2:1"); err == nil {
		t.Error("an address of an unknown kind was accepted")
	}
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@instant-init-test"} {
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := notifyReady(name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		buffer := make([]byte, 100)
		if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if length, err := socket.Read(buffer); err != nil || string(buffer[:length]) != "READY=1" {
			t.Errorf("%s: got %q, %v", name, buffer[:length], err)
		}
		socket.Close()
	}
}
