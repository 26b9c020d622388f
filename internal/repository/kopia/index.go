package kopia

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/kopia/kopia/repo/object"
)

// This file is all that the package knows of kopia's format of indirect
// objects:
//
//	{"stream":"kopia:indirect","entries":[
//	{"l":1048576,"o":"6e4d…"},
//	{"s":1048576,"l":1048576,"o":"9b1c…"}
//	]}
//
// s is the start of the entry in the object and is left out when it is 0, l the
// length, o the object. Entries are in ascending order without gaps. The object
// that the list describes has the ID of the object that the list is stored in,
// with an "I" in front.
//
// TestStockKopiaReadsImages reads the result back through kopia's own object
// reader.

type entry = object.IndirectObjectEntry

const (
	indexStream = "kopia:indirect"
	indexHead   = `{"stream":"` + indexStream + `","entries":[` + "\n"
	indexTail   = "]}\n"

	// indexPrefix puts the contents of an index among kopia's metadata packs, as
	// kopia does with its own.
	indexPrefix = "x"

	// pieceEntries is how many entries share one piece of a long index: at about
	// 80 bytes each, one changed segment rewrites 20 KiB of the root, and the root
	// of 64 TiB (524,288 segments) consists of 2,048 pieces.
	pieceEntries = 256

	// maxEntryBytes bounds one entry in JSON: two numbers of 19 digits, an object
	// ID of 2 * 32 hexadecimal digits, names and punctuation come to 130 bytes.
	maxEntryBytes = 160
)

// indirect is the ID of the object that an index describes.
func indirect(index object.ID) (object.ID, error) {
	id, err := object.ParseID("I" + index.String())
	if err != nil {
		return object.EmptyID, fmt.Errorf("derive indirect object of %v: %w", index, err)
	}
	return id, nil
}

// indexPieces renders an index of n entries in pieces of pieceEntries. The text
// of a piece depends on its entries, and on whether it is the first or the last,
// so that an unchanged piece is an unchanged content.
func indexPieces(n int, at func(int) entry, emit func([]byte) error) error {
	var buf []byte
	for i := range n {
		if i == 0 {
			buf = append(buf, indexHead...)
		}
		buf = appendEntry(buf, at(i))
		if i < n-1 {
			buf = append(buf, ',')
		}
		buf = append(buf, '\n')
		switch {
		case i == n-1:
			buf = append(buf, indexTail...)
		case (i+1)%pieceEntries != 0:
			continue
		}
		if err := emit(buf); err != nil {
			return err
		}
		buf = buf[:0]
	}
	return nil
}

func appendEntry(buf []byte, e entry) []byte {
	buf = append(buf, '{')
	if e.Start != 0 {
		buf = append(buf, `"s":`...)
		buf = strconv.AppendInt(buf, e.Start, 10)
		buf = append(buf, ',')
	}
	buf = append(buf, `"l":`...)
	buf = strconv.AppendInt(buf, e.Length, 10)
	buf = append(buf, `,"o":"`...)
	buf = e.Object.Append(buf)
	return append(buf, `"}`...)
}

// parseIndex reads the index of an object of length bytes. It accepts at most
// maxEntries entries and hands them to add in order. Whatever does not describe
// exactly that object is an error that wraps repository.ErrCorrupt.
func parseIndex(r io.Reader, length int64, maxEntries int, add func(entry) error) error {
	if err := decodeIndex(r, length, maxEntries, add); err != nil {
		return corrupt(fmt.Errorf("parse index object: %w", err))
	}
	return nil
}

func decodeIndex(r io.Reader, length int64, maxEntries int, add func(entry) error) error {
	limit := int64(len(indexHead)+len(indexTail)) + int64(maxEntries)*maxEntryBytes
	d := json.NewDecoder(io.LimitReader(r, limit))
	d.DisallowUnknownFields()
	if err := expect(d, json.Delim('{'), "stream", indexStream, "entries", json.Delim('[')); err != nil {
		return err
	}
	var pos int64
	for n := 0; d.More(); n++ {
		if n == maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		e, err := decodeEntry(d, pos, length)
		if err == nil {
			err = add(e)
		}
		if err != nil {
			return fmt.Errorf("entry %d at %d: %w", n, pos, err)
		}
		pos += e.Length
	}
	if pos != length {
		return fmt.Errorf("entries end at %d, want %d", pos, length)
	}
	if err := expect(d, json.Delim(']'), json.Delim('}')); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the index")
	}
	return nil
}

// decodeEntry reads the entry that starts at pos in an object of length bytes.
func decodeEntry(d *json.Decoder, pos, length int64) (entry, error) {
	var e entry
	if err := d.Decode(&e); err != nil {
		return entry{}, err
	}
	switch {
	case e.Start != pos:
		return entry{}, fmt.Errorf("start is %d", e.Start)
	case e.Length <= 0 || e.Length > length-pos:
		return entry{}, fmt.Errorf("length is %d, want 1 to %d", e.Length, length-pos)
	case e.Object == object.EmptyID:
		return entry{}, errors.New("object is missing")
	}
	return e, nil
}

// expect reads exactly these tokens.
func expect(d *json.Decoder, tokens ...json.Token) error {
	for _, want := range tokens {
		got, err := d.Token()
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("got %v, want %v", got, want)
		}
	}
	return nil
}
