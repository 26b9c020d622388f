package config

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// Live is the configuration as its file has it now. While the file cannot be read or is wrong, it is the
// last one that was right.
type Live struct {
	path string
	log  logr.Logger
	// seen is the document that was read last, and wrong says what is wrong with it.
	seen    []byte
	wrong   error
	current atomic.Pointer[Config]
	invalid atomic.Bool
	changed []func()
}

// period is how often the file is read. The kubelet takes up to a minute to show a changed ConfigMap.
const period = 5 * time.Second

// Follow reads the document in a file. Its values must be right. There is no earlier document to stay
// with, so a field that nobody knows is left out, and the document is not valid. An empty path gives the
// defaults, for ever.
func Follow(path string, log logr.Logger) (*Live, error) {
	l := &Live{path: path, log: log}
	if path == "" {
		return Fixed(Config{})
	}
	document, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if err := l.take(document); err != nil {
		known, knownErr := parseKnown(document)
		if knownErr != nil {
			return nil, err
		}
		l.current.Store(&known)
		l.invalid.Store(true)
		log.Error(err, "the configuration is wrong: what is not known in it is left out", "file", path)
	}
	return l, nil
}

// Fixed is a configuration that does not change. The zero value of a field is its default.
func Fixed(c Config) (*Live, error) {
	c.fillIn()
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("check configuration: %w", err)
	}
	l := &Live{}
	l.current.Store(&c)
	return l, nil
}

// Get returns the configuration.
func (l *Live) Get() Config { return *l.current.Load() }

// Valid reports whether the file is right.
func (l *Live) Valid() bool { return !l.invalid.Load() }

// OnChange has f called after each change. It must not be called after Start.
func (l *Live) OnChange(f func()) { l.changed = append(l.changed, f) }

// NeedLeaderElection implements manager.LeaderElectionRunnable: also a manager that waits follows the
// file.
func (l *Live) NeedLeaderElection() bool { return false }

// Start follows the file until the context ends.
func (l *Live) Start(ctx context.Context) error {
	if l.path == "" {
		<-ctx.Done()
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(period):
			l.look()
		}
	}
}

// look reads the file once.
func (l *Live) look() {
	document, err := os.ReadFile(l.path)
	switch {
	case err != nil:
		l.reject(err)
	case bytes.Equal(document, l.seen):
		l.invalid.Store(l.wrong != nil)
	default:
		if err := l.take(document); err != nil {
			l.reject(err)
			return
		}
		l.log.Info("the configuration has changed", "file", l.path)
		for _, f := range l.changed {
			f()
		}
	}
}

// reject keeps the configuration that there is. The log has a line for each document, and not for each
// look at it.
func (l *Live) reject(err error) {
	if !l.invalid.Swap(true) {
		l.log.Error(err, "the configuration is wrong: the last one that was right stays in force", "file", l.path)
	}
}

func (l *Live) take(document []byte) error {
	c, err := Parse(document)
	l.seen, l.wrong = document, err
	l.invalid.Store(false) // what was wrong before is not what the log has to say now
	if err != nil {
		return fmt.Errorf("read configuration %s: %w", l.path, err)
	}
	l.current.Store(&c)
	for _, field := range c.Ignored {
		l.log.Info("a field of the configuration has no meaning here: it is ignored", "field", field, "file", l.path)
	}
	return nil
}
