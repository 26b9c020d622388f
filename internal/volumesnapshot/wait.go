package volumesnapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/util/wait"
)

// The snapshot of a small volume is there within a second; one that takes
// minutes need not be asked for more often than every 2 s.
var handleBackoff = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 1.3, Cap: 2 * time.Second, Steps: 1 << 30}

// ErrExhausted is wrapped by the error of a wait in which the storage said that
// it has no room for the snapshot: its maximum number of them is reached, for one.
var ErrExhausted = errors.New("the storage takes no more snapshots")

var (
	// errGone says that the VolumeSnapshot was deleted by somebody else: no use to
	// wait any longer.
	errGone = errors.New("it was deleted meanwhile")
	// errFailedBefore says that another member has waited in vain.
	errFailedBefore = errors.New("the group snapshot has failed for another member")
)

// NotYetError says what is not there yet, or not gone, or what the storage says
// instead.
type NotYetError string

// Error implements error.
func (w NotYetError) Error() string { return string(w) }

// Until looks until there is no error, or one that is final, or the context ends.
// Then its error says what was seen last, which look says by a NotYetError, and which
// call has failed since: next to the end, the client's rate limiter refuses calls
// that it would delay beyond it, and that is not why it was waited in vain.
func Until(ctx context.Context, delay wait.DelayFunc, look func(context.Context) error) error {
	var failed error
	seen := NotYetError("the snapshot controller has not answered")
	err := delay.Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		err := look(ctx)
		switch {
		case err == nil:
			return true, nil
		case isFinal(err):
			return false, err
		case errors.As(err, &seen):
			failed = nil
		case ctx.Err() == nil:
			failed = err
		}
		return false, nil
	})
	switch {
	case err == nil, isFinal(err):
		return err
	case failed != nil:
		return fmt.Errorf("%w: %w; then: %w", err, exhausted(seen), failed)
	}
	return fmt.Errorf("%w: %w", err, exhausted(seen))
}

func isFinal(err error) bool { return errors.Is(err, errGone) || errors.Is(err, errFailedBefore) }

// exhausted wraps what a storage that is full says by ErrExhausted. The sidecar
// passes the driver's gRPC code on as text alone.
func exhausted(seen NotYetError) error {
	if strings.Contains(string(seen), codes.ResourceExhausted.String()) {
		return fmt.Errorf("%w: %w", ErrExhausted, seen)
	}
	return seen
}
