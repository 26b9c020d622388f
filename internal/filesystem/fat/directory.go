package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	entrySize = 32
	// mostDirectory is the most bytes of a directory, in the format and in Linux.
	mostDirectory = 65536 * entrySize

	attrReadOnly  = 0x01
	attrLabel     = 0x08
	attrDirectory = 0x10
	// attrLong marks an entry with a piece of a long name.
	attrLong, attrLongMask = 0x0f, 0x3f

	// Bits that say that the name or the extension is in small letters.
	lowerName, lowerExtension = 0x08, 0x10

	freed     = 0xe5
	longLast  = 0x40
	longMost  = 20 // entries, of 13 units each
	longUnits = 13
)

// entry is an entry of a directory.
type entry struct {
	name  string
	label bool
	at    int64 // on the device
	raw   rawEntry
}

type rawEntry [entrySize]byte

func (e *rawEntry) attributes() byte { return e[11] }

func (e *rawEntry) directory() bool { return e[11]&attrDirectory != 0 }

func (e *rawEntry) size() int64 { return int64(binary.LittleEndian.Uint32(e[28:])) }

func (e *rawEntry) first(bits int) uint32 {
	first := uint32(binary.LittleEndian.Uint16(e[26:]))
	if bits == 32 {
		first |= uint32(binary.LittleEndian.Uint16(e[20:])) << 16
	}
	return first
}

// sum is the checksum of the short name, which the pieces of the long name repeat.
func (e *rawEntry) sum() byte {
	sum := byte(0)
	for _, c := range e[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// entries yields the entries of a directory and the labels, and no deleted ones.
func (f *FileSystem) entries(id filesystem.ID) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		var long longName
		for at, raw := range f.slots(id, func(err error) { yield(entry{}, err) }) {
			e := entry{at: at, raw: raw}
			switch {
			case raw[0] == 0:
				return
			case raw[0] == freed:
				long = longName{}
				continue
			case raw.attributes()&attrLongMask == attrLong:
				long.add(&raw)
				continue
			case raw.attributes()&attrLabel != 0:
				e.label = true
				e.name = oem(strings.TrimRight(string(raw[:11]), " "))
			default:
				e.name = long.of(&raw)
				if e.name == "" {
					e.name = shortName(&raw)
				}
			}
			long = longName{}
			if e.name == "." || e.name == ".." {
				continue
			}
			if !e.label && (e.name == "" || strings.ContainsAny(e.name, "/\x00")) {
				yield(entry{}, damaged("a name in a directory is %q", e.name))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// slots yields the places and the bytes of all slots of a directory. It ends with a call of fail, or none.
func (f *FileSystem) slots(id filesystem.ID, fail func(error)) iter.Seq2[int64, rawEntry] {
	return func(yield func(int64, rawEntry) bool) {
		if id == rootID && f.bits != 32 {
			_, err := f.someSlots(f.rootAt, f.rootEntries*entrySize, yield)
			if err != nil {
				fail(err)
			}
			return
		}
		first := f.rootCluster
		if id != rootID {
			raw, err := f.entry(id)
			if err == nil && !raw.directory() {
				err = fmt.Errorf("file %d is no directory", id)
			}
			if err != nil {
				fail(err)
				return
			}
			first = raw.first(f.bits)
		}
		w := window{fs: f}
		cluster := first
		err := f.checkCluster(cluster)
		for size := int64(0); err == nil; size += f.cluster {
			if size >= max(mostDirectory, f.cluster) {
				err = damaged("a directory has more than %d bytes", mostDirectory)
				break
			}
			var goOn, more bool
			if goOn, err = f.someSlots(f.clusterAt(cluster), f.cluster, yield); err != nil || !goOn {
				break
			}
			if cluster, more, err = w.next(cluster); err == nil && !more {
				return
			}
		}
		if err != nil {
			fail(err)
		}
	}
}

// someSlots yields the slots of a range of the device. It returns false if the reader of the sequence wants no more.
func (f *FileSystem) someSlots(off, length int64, yield func(int64, rawEntry) bool) (bool, error) {
	buf := make([]byte, min(length, windowSize))
	for end := off + length; off < end; off += int64(len(buf)) {
		buf = buf[:min(end-off, int64(len(buf)))]
		if err := f.read(buf, off); err != nil {
			return false, err
		}
		for i := 0; i+entrySize <= len(buf); i += entrySize {
			if !yield(off+int64(i), rawEntry(buf[i:])) {
				return false, nil
			}
		}
	}
	return true, nil
}

// longName gathers the pieces of a long name, which come before the entry, the last one first.
type longName struct {
	units []uint16
	// next is the number of the piece that is due.
	next int
	sum  byte
}

func (l *longName) add(raw *rawEntry) {
	number := int(raw[0])
	if number&longLast != 0 {
		number &^= longLast
		*l = longName{next: number, sum: raw[13]}
		if number <= longMost {
			l.units = make([]uint16, number*longUnits)
		}
	}
	if number == 0 || number != l.next || raw[13] != l.sum || len(l.units) < number*longUnits {
		*l = longName{}
		return
	}
	l.next--
	at := l.units[l.next*longUnits:]
	for i := range longUnits {
		from := 1 + 2*i
		switch {
		case i >= 11:
			from = 28 + 2*(i-11)
		case i >= 5:
			from = 14 + 2*(i-5)
		}
		at[i] = binary.LittleEndian.Uint16(raw[from:])
	}
}

// of returns the long name of an entry, or "" if it has none.
func (l *longName) of(raw *rawEntry) string {
	if len(l.units) == 0 || l.next != 0 || l.sum != raw.sum() {
		return ""
	}
	units := l.units
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	name := decode(units)
	if strings.Contains(name, "/") {
		return "" // not a name of a file: the short one counts
	}
	return name
}

// decode is UTF-16 as UTF-8. A surrogate without the other half keeps its three bytes, so that names that
// differ stay different.
func decode(units []uint16) string {
	var b []byte
	for i := 0; i < len(units); i++ {
		r := rune(units[i])
		if !utf16.IsSurrogate(r) {
			b = utf8.AppendRune(b, r)
			continue
		}
		if i+1 < len(units) {
			if pair := utf16.DecodeRune(r, rune(units[i+1])); pair != utf8.RuneError {
				b = utf8.AppendRune(b, pair)
				i++
				continue
			}
		}
		b = append(b, 0xe0|byte(r>>12), 0x80|byte(r>>6)&0x3f, 0x80|byte(r)&0x3f)
	}
	return string(b)
}

// shortName is the name in the entry itself, with the case that its bits say.
func shortName(raw *rawEntry) string {
	base, extension := bytes.Clone(raw[:8]), raw[8:11]
	if base[0] == 0x05 {
		base[0] = freed // which would mean deleted
	}
	text := func(b []byte, lower bool) string {
		s := oem(strings.TrimRight(string(b), " "))
		if lower {
			s = strings.ToLower(s)
		}
		return s
	}
	name := text(base, raw[12]&lowerName != 0)
	if e := text(extension, raw[12]&lowerExtension != 0); e != "" {
		name += "." + e
	}
	return name
}

// oem decodes code page 437, which is what Linux takes by default.
func oem(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		b.WriteRune(charmap.CodePage437.DecodeByte(c))
	}
	return b.String()
}

// modeOf is the mode that Linux makes of the attributes.
func modeOf(raw *rawEntry) fs.FileMode {
	switch {
	case raw.directory():
		return fs.ModeDir | 0o755
	case raw.attributes()&attrReadOnly != 0:
		return 0o555
	}
	return 0o755
}

// timeOf returns the time of a date and a time of day. What is no date is the zero time.
func timeOf(date, clock uint16) time.Time {
	year, month, day := 1980+int(date>>9), time.Month(date>>5&0xf), int(date&0x1f)
	if month < 1 || month > 12 || day < 1 {
		return time.Time{}
	}
	return time.Date(year, month, day, int(clock>>11), int(clock>>5&0x3f), int(clock&0x1f)*2, 0, time.UTC)
}
