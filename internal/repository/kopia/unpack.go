package kopia

import (
	"crypto/aes"
	"errors"
	"fmt"
	"io"

	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/encryption"
)

// To read a content, kopia looks it up in each index blob, although who has fetched it has done so before. An image whose pages are in
// the packs of thirty increments then spends a fifth of its restore on that. So what was fetched is decrypted here.

// unpack fills to with the bytes of a content, from what its pack has of it. It fails if they are not as many. It authenticates them, as
// kopia does: the ID of the content is a part of the key.
type unpack func(info content.Info, packed, to []byte) error

// gathered is kopia's gather.Bytes, which has no name here.
type gathered interface {
	io.WriterTo
	Reader() io.ReadSeekCloser
}

var errWrongLength = errors.New("content does not have the length of its entry")

// newUnpack does what kopia's content manager does after it has read a content.
func newUnpack(e encryption.Encryptor) unpack {
	return func(info content.Info, packed, to []byte) error {
		hash := info.ContentID.Hash()
		if len(hash) < aes.BlockSize || int64(info.OriginalLength) != int64(len(to)) || info.EncryptionKeyID != 0 {
			return errWrongLength
		}
		sealed, opened := parametersOf(e.Decrypt)
		sealed.Slices = [][]byte{packed}
		defer opened.Close()
		if err := e.Decrypt(sealed, hash[len(hash)-aes.BlockSize:], opened); err != nil {
			return fmt.Errorf("decrypt content %v: %w", info.ContentID, err)
		}
		w := &filler{rest: to}
		if err := decompress(info.CompressionHeaderID, opened.Bytes(), w); err != nil {
			return fmt.Errorf("decompress content %v: %w", info.ContentID, err)
		}
		if len(w.rest) > 0 {
			return errWrongLength
		}
		return nil
	}
}

// parametersOf returns empty values of the types that Decrypt takes: kopia's gather.Bytes and gather.WriteBuffer.
func parametersOf[Bytes, Buffer any](func(Bytes, []byte, *Buffer) error) (sealed Bytes, opened *Buffer) {
	return sealed, new(Buffer)
}

func decompress(id compression.HeaderID, from gathered, to io.Writer) error {
	if id == 0 {
		_, err := from.WriteTo(to)
		return err
	}
	c := compression.ByHeaderID[id]
	if c == nil {
		return fmt.Errorf("unknown compressor %x", id)
	}
	return c.Decompress(to, from.Reader(), true)
}

// filler is a writer with room for so many bytes.
type filler struct{ rest []byte }

// Write implements io.Writer.
func (f *filler) Write(p []byte) (int, error) {
	n := copy(f.rest, p)
	f.rest = f.rest[n:]
	if n < len(p) {
		return n, errWrongLength
	}
	return n, nil
}
