package kubectl

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	appsv1apply "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// What Velero's server needs to load a plugin: an init container copies it into a volume.
const (
	pluginContainer = "velero-plugin-blockmover"
	pluginVolume    = "plugins"
	pluginTarget    = "/target"
	// pluginOwner owns the init container, and nothing else of the Deployment.
	pluginOwner = "blockmover-plugin"
)

// pluginPoll is the time between two looks at a Deployment that restarts.
const pluginPoll = time.Second

// pluginOptions are the flags of plugin add and plugin remove.
type pluginOptions struct {
	session    *session
	deployment string
	pullPolicy string
	timeout    time.Duration
}

func newPluginCommand(s *session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Put the plugin into Velero's server, or take it out",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	add, remove := pluginOptions{session: s}, pluginOptions{session: s}
	addCommand := &cobra.Command{
		Use:   "add IMAGE",
		Short: "Put the plugin into Velero's server, or another version of it",
		Long: "Add does what velero plugin add does, and replaces the version from before in the same step. It waits\n" +
			"until Velero's server has restarted. The Helm chart runs it in a Job.",
		Args: oneArgument(1),
		RunE: s.run(func(ctx context.Context, args []string) error { return add.apply(ctx, args[0]) }),
	}
	add.addFlags(addCommand)
	addCommand.Flags().StringVar(&add.pullPolicy, "image-pull-policy", string(corev1.PullIfNotPresent), "Always, IfNotPresent or Never")
	removeCommand := &cobra.Command{
		Use:   "remove",
		Short: "Take out the plugin that plugin add has put into Velero's server",
		Args:  cobra.NoArgs,
		RunE:  s.run(func(ctx context.Context, _ []string) error { return remove.apply(ctx, "") }),
	}
	remove.addFlags(removeCommand)
	cmd.AddCommand(addCommand, removeCommand)
	return cmd
}

func (o *pluginOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.deployment, "deployment", serverName, "`name` of the Deployment of Velero's server")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 4*time.Minute, "`time` in which the server must have restarted")
}

// apply makes the Deployment have an init container with an image, or none. It is a server-side
// apply: init containers of others stay as they are.
func (o *pluginOptions) apply(ctx context.Context, image string) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	key := client.ObjectKey{Namespace: o.session.namespace(), Name: o.deployment}
	server := &appsv1.Deployment{}
	err := o.session.Client.Get(ctx, key, server)
	switch {
	case apierrors.IsNotFound(err) && image == "":
		return nil // with Velero, its plugins have gone
	case apierrors.IsNotFound(err):
		return fmt.Errorf("Deployment %s does not exist: install Velero first, or give its namespace with -n, and its name with --deployment", key) //nolint:staticcheck // Deployment is the name of a kind
	case err != nil:
		return fmt.Errorf("get Deployment %s: %w", key, err)
	}
	wanted := appsv1apply.Deployment(key.Name, key.Namespace)
	if image != "" {
		if err := checkServer(server, image); err != nil {
			return err
		}
		wanted.WithSpec(appsv1apply.DeploymentSpec().WithTemplate(corev1apply.PodTemplateSpec().WithSpec(corev1apply.PodSpec().WithInitContainers(
			corev1apply.Container().WithName(pluginContainer).WithImage(image).WithImagePullPolicy(corev1.PullPolicy(o.pullPolicy)).
				WithVolumeMounts(corev1apply.VolumeMount().WithName(pluginVolume).WithMountPath(pluginTarget)),
		))))
	}
	if err := o.session.Client.Apply(ctx, wanted, client.FieldOwner(pluginOwner), client.ForceOwnership); err != nil {
		return fmt.Errorf("change Deployment %s: %w", key, err)
	}
	if err := o.restarted(ctx, key); err != nil {
		return err
	}
	done := "has no plugin of ours now"
	if image != "" {
		done = "has the plugin of " + image + " now"
	}
	_, err = fmt.Fprintf(o.session.Streams.Out, "Deployment %s %s\n", key, done)
	return err
}

// checkServer returns an error if an init container could not work, or if there is one already.
func checkServer(server *appsv1.Deployment, image string) error {
	pod := server.Spec.Template.Spec
	name := server.Namespace + "/" + server.Name
	if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == pluginVolume }) {
		return fmt.Errorf("Deployment %s has no volume %q for plugins, so it is not Velero's server: give the name with --deployment", name, pluginVolume) //nolint:staticcheck // Deployment is the name of a kind
	}
	for _, c := range pod.InitContainers {
		if c.Name != pluginContainer && imageRepository(c.Image) == imageRepository(image) {
			return fmt.Errorf("Deployment %s has the plugin already, as init container %s with image %s: run velero plugin remove %s first", name, c.Name, c.Image, c.Image) //nolint:staticcheck // Deployment is the name of a kind
		}
	}
	return nil
}

// restarted waits until only pods of the newest template run.
func (o *pluginOptions) restarted(ctx context.Context, key client.ObjectKey) error {
	server := &appsv1.Deployment{}
	err := wait.PollUntilContextCancel(ctx, pluginPoll, true, func(ctx context.Context) (bool, error) {
		if err := o.session.Client.Get(ctx, key, server); err != nil {
			return false, err
		}
		replicas, s := int32(1), server.Status
		if server.Spec.Replicas != nil {
			replicas = *server.Spec.Replicas
		}
		return s.ObservedGeneration >= server.Generation && s.UpdatedReplicas == replicas && s.Replicas == replicas && s.AvailableReplicas == replicas, nil
	})
	if err != nil {
		s := server.Status
		return fmt.Errorf("wait for the restart of Deployment %s: %w; %d of its %d pods are new, and %d are available: kubectl -n %s describe pods says why",
			key, err, s.UpdatedReplicas, s.Replicas, s.AvailableReplicas, key.Namespace)
	}
	return nil
}

// imageRepository is the name of an image without tag and digest.
func imageRepository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
		image = image[:i]
	}
	return image
}
