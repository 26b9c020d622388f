package block

import "bytes"

// zeros is what IsZero compares with: small enough to stay in the first-level
// cache, large enough that the comparison runs at the speed of memory.
var zeros [4 << 10]byte

// IsZero reports whether all bytes are zero.
func IsZero(data []byte) bool {
	for len(data) > len(zeros) {
		if !bytes.Equal(data[:len(zeros)], zeros[:]) {
			return false
		}
		data = data[len(zeros):]
	}
	return bytes.Equal(data, zeros[:len(data)])
}
