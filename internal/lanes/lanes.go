// Package lanes gives the messages that are hashed at once to the lanes of a vector processor.
package lanes

import "fmt"

// Fill sets the pointers of all lanes to 1 to len(data) messages of the same length, a positive multiple of block bytes. Lanes that are
// left over have the last message. Fill returns the length, or an error that says what is wrong with the messages.
func Fill(data []*byte, messages [][]byte, block int) (length int, err error) {
	if len(messages) < 1 || len(messages) > len(data) {
		return 0, fmt.Errorf("%d messages, want 1 to %d", len(messages), len(data))
	}
	length = len(messages[0])
	if length == 0 || length%block != 0 {
		return 0, fmt.Errorf("message has %d bytes, want a multiple of %d", length, block)
	}
	for lane := range data {
		m := messages[min(lane, len(messages)-1)]
		if len(m) != length {
			return 0, fmt.Errorf("messages have %d and %d bytes, want the same", length, len(m))
		}
		data[lane] = &m[0]
	}
	return length, nil
}
