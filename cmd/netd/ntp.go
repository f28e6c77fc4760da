package main

import (
	"encoding/binary"
	"time"
)

const (
	ntpPort    = 123
	ntpLength  = 48
	ntpEra     = 2208988800 // seconds from 1900 to 1970
	ntpStratum = 3          // as EC2's time service
)

// answerNTP is the host's clock at EC2's time address (RFC 5905); nil for what is not a client's request.
func answerNTP(request []byte, now time.Time) []byte {
	if len(request) < ntpLength || request[0]&7 != 3 {
		return nil
	}
	stamp := func(out []byte) {
		binary.BigEndian.PutUint32(out, uint32(now.Unix()+ntpEra))
		binary.BigEndian.PutUint32(out[4:], uint32(uint64(now.Nanosecond())<<32/1e9))
	}
	reply := make([]byte, ntpLength)
	reply[0] = request[0]&0x38 | 4 // the request's version, mode server
	reply[1], reply[2], reply[3] = ntpStratum, request[2], 0xec
	binary.BigEndian.PutUint32(reply[8:], 1<<16/1000) // root dispersion: 1 ms
	copy(reply[12:], []byte{169, 254, 169, 122})      // where EC2's says that its time comes from
	stamp(reply[16:])
	copy(reply[24:32], request[40:48])
	stamp(reply[32:])
	stamp(reply[40:])
	return reply
}
