package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// A request is one netlink message as it grows: struct nlmsghdr, a fixed part, attributes, all aligned to 4 bytes.
type request struct{ data []byte }

func newRequest(kind, flags uint16, fixed []byte) *request {
	r := &request{make([]byte, syscall.SizeofNlMsghdr, 128)}
	binary.NativeEndian.PutUint16(r.data[4:], kind)
	binary.NativeEndian.PutUint16(r.data[6:], flags|syscall.NLM_F_REQUEST|syscall.NLM_F_ACK)
	r.data = append(r.data, fixed...)
	return r
}

func linkRequest(index int) *request {
	header := make([]byte, syscall.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	return newRequest(syscall.RTM_NEWLINK, 0, header)
}

// bytes appends an attribute; values here are 4 bytes long and need no padding.
func (r *request) bytes(kind uint16, value []byte) {
	r.data = binary.NativeEndian.AppendUint16(r.data, uint16(syscall.SizeofRtAttr+len(value)))
	r.data = binary.NativeEndian.AppendUint16(r.data, kind)
	r.data = append(r.data, value...)
}

func (r *request) number(kind uint16, value uint32) {
	r.bytes(kind, binary.NativeEndian.AppendUint32(nil, value))
}

// A step is a request and what its failure is called; an error that is tolerated means that it was done before.
type step struct {
	what      string
	request   *request
	tolerated syscall.Errno
}

// run does the steps in order and stops at the first that fails.
func run(steps []step) error {
	socket, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer syscall.Close(socket)
	for _, one := range steps {
		err := one.request.ask(socket)
		if err != nil && !(one.tolerated != 0 && errors.Is(err, one.tolerated)) {
			return fmt.Errorf("%s: %w", one.what, err)
		}
	}
	return nil
}

// ask sends the request and returns the kernel's verdict, which comes at once.
func (r *request) ask(socket int) error {
	binary.NativeEndian.PutUint32(r.data, uint32(len(r.data)))
	if err := syscall.Sendto(socket, r.data, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	length, _, err := syscall.Recvfrom(socket, buffer, 0)
	if err != nil {
		return err
	}
	answers, err := syscall.ParseNetlinkMessage(buffer[:length])
	if err != nil {
		return err
	}
	// struct nlmsgerr begins with the negated error number; 0 is the acknowledgement.
	if len(answers) != 1 || answers[0].Header.Type != syscall.NLMSG_ERROR || len(answers[0].Data) < 4 {
		return errors.New("the kernel's answer is not an acknowledgement")
	}
	if code := -int32(binary.NativeEndian.Uint32(answers[0].Data)); code != 0 {
		return syscall.Errno(code)
	}
	return nil
}
