// Package rangefile reads and writes lists of byte ranges of a volume as JSON lines, and
// makes a cbt.Source of such lists. The lists stand for what a storage system would report.
//
// One line is one range:
//
//	{"offset":1048576,"length":65536}
//
// Ranges are in ascending order, do not overlap and are not empty. They may touch. The form
// is strict: both keys once, numbers in plain decimal, no other key, no blank line. A list
// without a line has no range.
package rangefile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/blockmover/blockmover/internal/block"
)

// maxLine bounds a line. Two numbers of 19 digits with their keys are 60 bytes;
// the rest is for spaces.
const maxLine = 1 << 10

// List is a checked list of ranges.
type List struct {
	extents []block.Extent
}

// Parse reads a list of ranges of a volume of size bytes. Its errors name the
// line. Ranges that touch become one.
func Parse(r io.Reader, size int64) (*List, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, maxLine), maxLine)
	list := &List{}
	n := 1
	for ; lines.Scan(); n++ {
		e, err := parseLine(lines.Bytes())
		if err == nil {
			err = list.add(e, size)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("line %d: longer than %d bytes", n, maxLine)
	case err != nil:
		return nil, fmt.Errorf("read line %d: %w", n, err)
	}
	return list, nil
}

func (l *List) add(e block.Extent, size int64) error {
	if err := e.CheckWithin(size); err != nil {
		return err
	}
	if last := len(l.extents) - 1; last >= 0 {
		switch end := l.extents[last].End(); {
		case e.Offset < end:
			return fmt.Errorf("range %s begins before the end %d of the one before it", e, end)
		case e.Offset == end:
			l.extents[last].Length += e.Length
			return nil
		}
	}
	l.extents = append(l.extents, e)
	return nil
}

// Append renders a range as a line.
func Append(buf []byte, e block.Extent) []byte {
	buf = append(buf, `{"offset":`...)
	buf = strconv.AppendInt(buf, e.Offset, 10)
	buf = append(buf, `,"length":`...)
	buf = strconv.AppendInt(buf, e.Length, 10)
	return append(buf, "}\n"...)
}

// parseLine reads one object. encoding/json would accept keys that occur twice or are spelled
// in capitals.
func parseLine(text []byte) (block.Extent, error) {
	var (
		e    block.Extent
		seen [2]bool
	)
	malformed := func() error { return fmt.Errorf("want {\"offset\":N,\"length\":N}, got %.60q", text) }
	in := scanner{text}
	if !in.take("{") {
		return e, malformed()
	}
	for i := range seen {
		if i > 0 && !in.take(",") {
			return e, malformed()
		}
		value, key := &e.Offset, 0
		if !in.take(`"offset"`) {
			value, key = &e.Length, 1
			if !in.take(`"length"`) {
				return e, malformed()
			}
		}
		if seen[key] {
			return e, fmt.Errorf("a key occurs twice in %.60q", text)
		}
		seen[key] = true
		if !in.take(":") {
			return e, malformed()
		}
		var err error
		if *value, err = in.number(); err != nil {
			return e, err
		}
	}
	if !in.take("}") || !in.atEnd() {
		return e, malformed()
	}
	return e, nil
}

// scanner reads the tokens of a line.
type scanner struct{ rest []byte }

func (s *scanner) skipSpace() {
	for len(s.rest) > 0 && (s.rest[0] == ' ' || s.rest[0] == '\t' || s.rest[0] == '\r') {
		s.rest = s.rest[1:]
	}
}

// take reads the given token, if it is the next one.
func (s *scanner) take(token string) bool {
	s.skipSpace()
	if !bytes.HasPrefix(s.rest, []byte(token)) {
		return false
	}
	s.rest = s.rest[len(token):]
	return true
}

func (s *scanner) atEnd() bool {
	s.skipSpace()
	return len(s.rest) == 0
}

// number reads a whole number as JSON writes it, without a sign.
func (s *scanner) number() (int64, error) {
	s.skipSpace()
	var n int64
	digits := 0
	for ; digits < len(s.rest); digits++ {
		c := s.rest[digits]
		if c < '0' || c > '9' {
			break
		}
		d := int64(c - '0')
		if n > (math.MaxInt64-d)/10 {
			return 0, fmt.Errorf("number %.30s is too large", s.rest)
		}
		n = n*10 + d
	}
	if digits == 0 || digits > 1 && s.rest[0] == '0' {
		return 0, fmt.Errorf("%.30q does not begin with a number of bytes", s.rest)
	}
	s.rest = s.rest[digits:]
	return n, nil
}
