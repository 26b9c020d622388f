package xfs

import (
	"fmt"
	"io"
)

// LogEnds returns where the log ends and begins, in the words of xfs_logprint.
func LogEnds(r io.ReaderAt, size int64) (string, error) {
	d := newDevice(r, size)
	b, err := d.read(0, superblockSize)
	if err != nil {
		return "", err
	}
	s, err := parseSuperblock(b, size)
	if err != nil {
		return "", err
	}
	ends, err := (&logReader{device: d, super: s}).ends()
	return fmt.Sprintf("log tail: %d head: %d state: <DIRTY>", ends.tail, ends.head), err
}
