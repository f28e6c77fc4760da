package imds

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// A token is base64url of a 4-byte version, the expiry in Unix nanoseconds (8 bytes) and the first
// 28 bytes of HMAC-SHA256 over both: 40 bytes, 56 characters, the size of EC2's own.
const (
	tokenBytes       = 40
	tokenSignedBytes = 12
	maxTokenTTL      = 21600 // seconds; the six hours EC2 allows
)

var tokenVersion = [4]byte{1, 0, 0, 0}

func signToken(key, signed []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(signed)
	return mac.Sum(nil)[:tokenBytes-tokenSignedBytes]
}

// newToken makes a token that holds until expiry.
func newToken(key []byte, expiry time.Time) string {
	token := make([]byte, tokenSignedBytes, tokenBytes)
	copy(token, tokenVersion[:])
	binary.BigEndian.PutUint64(token[4:], uint64(expiry.UnixNano()))
	return base64.URLEncoding.EncodeToString(append(token, signToken(key, token)...))
}

// validToken tells whether this instance's service made the token and it has not expired.
func validToken(key []byte, text string, now time.Time) bool {
	token, err := base64.URLEncoding.Strict().DecodeString(text)
	if err != nil || len(token) != tokenBytes {
		return false
	}
	signed, mac := token[:tokenSignedBytes], token[tokenSignedBytes:]
	if !hmac.Equal(mac, signToken(key, signed)) || [4]byte(signed[:4]) != tokenVersion {
		return false
	}
	return now.UnixNano() < int64(binary.BigEndian.Uint64(signed[4:]))
}
