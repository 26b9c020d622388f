package standin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// monitor is a connection to the storage daemon, in QEMU's machine protocol (QMP).
type monitor struct {
	conn  net.Conn
	lines *bufio.Scanner
}

const monitorTimeout = 30 * time.Second

// dialMonitor connects and takes up the protocol.
func dialMonitor(socket string) (*monitor, error) {
	conn, err := net.DialTimeout("unix", socket, monitorTimeout)
	if err != nil {
		return nil, fmt.Errorf("connect to monitor: %w", err)
	}
	m := &monitor{conn: conn, lines: bufio.NewScanner(conn)}
	m.lines.Buffer(nil, 16<<20)
	if err := m.execute("qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return m, nil
}

// execute runs a command, and decodes what it returns into a value.
func (m *monitor) execute(command string, arguments, into any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	if err := m.conn.SetDeadline(time.Now().Add(monitorTimeout)); err != nil {
		return err
	}
	if _, err := m.conn.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("send %s: %w", command, err)
	}
	for m.lines.Scan() {
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(m.lines.Bytes(), &answer); err != nil {
			return fmt.Errorf("decode answer to %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("%s %s: %s", command, text, answer.Error.Desc)
		case answer.Return != nil:
			if into == nil {
				return nil
			}
			return json.Unmarshal(answer.Return, into)
		} // else it is the greeting, or an event
	}
	return fmt.Errorf("read answer to %s: %w", command, errors.Join(m.lines.Err(), net.ErrClosed))
}
