// Package remote reads an image that another process has open, over a connection of two pipes: the one that reads files is not
// the one that has the credentials of the repository.
//
// # Protocol
//
// All numbers are big-endian. The server begins with a greeting: "blockmover-files 1\n", the size and the chunk size (8 bytes each). Then
// each request is answered, in any order:
//
//	request   ID (8) kind (1) offset (8) length (4)
//	answer    ID (8) status (1) length (4) bytes
//
// A read is answered with its bytes, a question for zero with one byte for each chunk (1 is zero), and what fails with the text of the
// error. A ping has no answer. The client sends one often; a server that hears nothing for a while ends, so that it does
// not outlive a client that was killed.
//
// The package is pure.
package remote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	greeting = "blockmover-files 1\n"
	// mostRead is the longest read, and mostChunks the most chunks of one question.
	mostRead   = 8 << 20
	mostChunks = 4096
	// mostText is the longest text of an error.
	mostText = 64 << 10
	// parallel is how many requests are answered at once, and mostWaiting how many more are read, so that a busy server still
	// hears its client.
	parallel    = 16
	mostWaiting = 64

	kindRead = 1
	kindZero = 2
	kindPing = 3

	statusOK    = 0
	statusError = 1

	requestSize = 8 + 1 + 8 + 4
	answerSize  = 8 + 1 + 4

	// pingInterval is how often a client sends a ping.
	pingInterval = 10 * time.Second
	// Patience is how long a server waits for a request before it ends.
	Patience = 60 * time.Second
)

type request struct {
	id     uint64
	kind   byte
	offset int64
	length int64
}

func (r request) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, requestSize), r.id)
	b = append(b, r.kind)
	b = binary.BigEndian.AppendUint64(b, uint64(r.offset))
	return binary.BigEndian.AppendUint32(b, uint32(r.length))
}

// readRequest reads a request and checks it: a length has bounds whoever sends it.
func readRequest(in io.Reader) (request, error) {
	var b [requestSize]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return request{}, err
	}
	r := request{
		id: binary.BigEndian.Uint64(b[:]), kind: b[8],
		offset: int64(binary.BigEndian.Uint64(b[9:])), length: int64(binary.BigEndian.Uint32(b[17:])),
	}
	most := map[byte]int64{kindRead: mostRead, kindZero: mostChunks, kindPing: 0}
	if limit, known := most[r.kind]; !known || r.offset < 0 || r.length > limit {
		return r, fmt.Errorf("request of kind %d for %d at %d makes no sense", r.kind, r.length, r.offset)
	}
	return r, nil
}

func encodeAnswer(id uint64, status byte, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, answerSize+len(data)), id)
	b = append(b, status)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// readAnswer reads an answer. asked returns how many bytes were asked for, and false if nothing was: what the other side says
// of its answer takes no memory.
func readAnswer(in io.Reader, asked func(id uint64) (int64, bool)) (id uint64, status byte, data []byte, err error) {
	var b [answerSize]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return 0, 0, nil, err
	}
	id, status = binary.BigEndian.Uint64(b[:]), b[8]
	length := int64(binary.BigEndian.Uint32(b[9:]))
	most, known := asked(id)
	if status != statusOK {
		most = mostText
	}
	if !known || length > most {
		return 0, 0, nil, fmt.Errorf("an answer to request %d of %d bytes was not asked for", id, length)
	}
	data = make([]byte, length)
	_, err = io.ReadFull(in, data)
	return id, status, data, err
}

// ErrLost is wrapped by the errors of an image whose connection has ended.
var ErrLost = errors.New("the connection to the reader of the repository has ended")
