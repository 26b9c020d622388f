package kubectl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
)

func newCancelCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel NAME|BACKUP|RESTORE|NAMESPACE/PVC",
		Short: "Cancel uploads and downloads",
		Long: "Cancel ends the uploads and downloads of a backup, of a restore or of a volume, or one by its name.\n" +
			"They end as Canceled, and the Backup or Restore as PartiallyFailed. Nothing of them stays.",
		Args: oneArgument(1),
		RunE: s.run(func(ctx context.Context, args []string) error {
			v := &viewer{session: s, filter: args[0]}
			found, err := v.look(ctx)
			if err != nil {
				return err
			}
			if len(found) == 0 {
				return fmt.Errorf("no upload or download of %s in namespace %s runs or waits", args[0], s.namespace())
			}
			var errs []error
			for _, o := range found {
				err := s.cancel(ctx, o)
				if errs = append(errs, err); err == nil {
					_, _ = fmt.Fprintf(s.Streams.Out, "%s %s of volume %s will be canceled\n", o.Kind, o.Name, o.Volume)
				}
			}
			return errors.Join(errs...)
		}),
	}
}

func (s *session) cancel(ctx context.Context, o Operation) error {
	view, err := operation.Find(ctx, s.Client, o.Kind, client.ObjectKey{Namespace: s.namespace(), Name: o.Name})
	if err != nil || view == nil {
		return err
	}
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"cancel":true}}`))
	if err := s.Client.Patch(ctx, view.Object(), patch, client.FieldOwner(identity.DataMover)); err != nil {
		return fmt.Errorf("cancel %s %s: %w", o.Kind, o.Name, err)
	}
	return nil
}
