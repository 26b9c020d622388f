package vmbackup

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/blockmover/blockmover/internal/chain"
)

// State is how far the backup of a VM is. The caller keeps it between two steps.
type State struct {
	// Attempt is the number of the attempt, from 1. It is 0 before the first step.
	Attempt int `json:"attempt"`
	// Decided is set once it is known what the attempt asks for: Since or Full.
	Decided bool `json:"decided,omitempty"`
	// Since is the checkpoint that the files hold the changes since. It is "" if they hold the
	// whole disks; then Full says why.
	Since string       `json:"since,omitempty"`
	Full  []chain.Step `json:"full,omitempty"`
	// Forced are reasons for a full that come from an earlier attempt.
	Forced []chain.Step `json:"forced,omitempty"`
	// Restored has the UIDs of the DataDownloads that wrote disks in place last, by the name of the disk in the VM.
	Restored map[string]string `json:"restored,omitempty"`
	// Begun is set once the objects of the attempt were created.
	Begun bool `json:"begun,omitempty"`
	// NoSpace counts the attempts whose volume was too small.
	NoSpace int `json:"noSpace,omitempty"`
	// Files is set once KubeVirt has written the files.
	Files *Files `json:"files,omitempty"`
	// Ready is set once the files are in Velero's namespace.
	Ready bool `json:"ready,omitempty"`
}

// Files are what a VirtualMachineBackup has written.
type Files struct {
	// Backup is its name, Checkpoint that of the instant, and At when it was created.
	Backup     string    `json:"backup"`
	Checkpoint string    `json:"checkpoint"`
	At         time.Time `json:"at"`
	// Volume is the PersistentVolume that has them.
	Volume string `json:"volume"`
}

// Parse reads a State. The empty text is the State before the first step.
func Parse(text string) (State, error) {
	var s State
	if text == "" {
		return s, nil
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return State{}, fmt.Errorf("read state of the backup of the VM: %w", err)
	}
	if err := s.check(); err != nil {
		return State{}, fmt.Errorf("read state of the backup of the VM: %w", err)
	}
	return s, nil
}

// check bounds what the steps count up to: an annotation can say anything.
func (s State) check() error {
	switch {
	case s.Attempt < 0 || s.Attempt > maxAttempts:
		return fmt.Errorf("attempt is %d, want 0 to %d", s.Attempt, maxAttempts)
	case s.NoSpace < 0 || s.NoSpace > maxAttempts:
		return fmt.Errorf("noSpace is %d, want 0 to %d", s.NoSpace, maxAttempts)
	case s.Ready && s.Files == nil:
		return errors.New("it is ready, and has no files")
	}
	return nil
}

// String renders a State.
func (s State) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // it has only text, numbers and times
	}
	return string(b)
}
