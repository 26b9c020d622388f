package backup

import (
	"context"
	"fmt"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/utils/volumehelper"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/policy"
)

// Types of policy actions: one leaves a volume to a plugin, the other does not back it up.
const (
	actionCustom = "custom"
	actionSkip   = "skip"
)

// policies finds the volume policy of a PVC.
type policies struct {
	log logrus.FieldLogger
	api client.Client
	// global is the ConfigMap of volume policies that apply to every backup (a flag of
	// the Velero server), or "".
	global string
}

// decision is what the first policy that matches says.
type decision struct {
	matched bool
	// action is the type of the policy action, or "" if no policy matches.
	action string
	params map[string]any
	// ours is set if the volume is given to Blockmover.
	ours bool
}

// decideClaim is decide for a PVC that was read from the cluster.
func (p policies) decideClaim(pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (decision, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pvc)
	if err != nil {
		return decision{}, fmt.Errorf("encode PVC %s/%s: %w", pvc.Namespace, pvc.Name, err)
	}
	return p.decide(&unstructured.Unstructured{Object: content}, pvc, backup)
}

// decide returns what the policies say of the PVC. The policies of the backup come before those
// that the server applies to all backups. The first match decides.
func (p policies) decide(item runtime.Unstructured, pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (decision, error) {
	for _, source := range p.sources(backup) {
		decided, err := p.match(item, pvc, source)
		if err != nil {
			return decision{}, fmt.Errorf("match volume policies for PVC %s/%s: %w", pvc.Namespace, pvc.Name, err)
		}
		if decided.matched {
			return decided, nil
		}
	}
	return decision{}, nil
}

// sources returns copies of the backup, each with one ConfigMap of volume policies.
// Velero's helper takes a backup, and does not know the server's policies for all backups.
func (p policies) sources(backup *velerov1.Backup) []velerov1.Backup {
	var sources []velerov1.Backup
	if backup.Spec.ResourcePolicy != nil {
		sources = append(sources, *backup)
	}
	if p.global != "" {
		global := backup.DeepCopy()
		global.Spec.ResourcePolicy = &corev1.TypedLocalObjectReference{Kind: "configmap", Name: p.global}
		sources = append(sources, *global)
	}
	return sources
}

// match applies one set of policies.
//
// A PVC without a volume can match policies with conditions on the PVC alone. For it, the
// helper only answers whether a policy names us. A policy that names another plugin looks
// like no match.
func (p policies) match(item runtime.Unstructured, pvc *corev1.PersistentVolumeClaim, source velerov1.Backup) (decision, error) {
	reads := &failedReads{Client: p.api}
	helper, err := volumehelper.NewVolumeHelperWithCache(source, reads, p.log, nil)
	if err != nil {
		return decision{}, err
	}
	if pvc.Status.Phase == corev1.ClaimBound && pvc.Spec.VolumeName != "" {
		matched, actionType, params, err := helper.GetActionParameters(item, kuberesource.PersistentVolumeClaims)
		if err == nil {
			err = reads.first
		}
		if err == nil {
			custom := matched && actionType == actionCustom
			ours := custom && policy.IsOurs(params)
			if custom && !ours {
				if err := policy.CheckForeign(params); err != nil {
					return decision{}, err
				}
				p.log.Debugf("PVC %s/%s: the volume policy leaves the volume to another plugin", pvc.Namespace, pvc.Name)
			}
			return decision{matched, actionType, params, ours}, nil
		}
		if !apierrors.IsNotFound(err) {
			return decision{}, err
		}
	}
	for _, wanted := range policy.MatchParameters() {
		ours, err := helper.ShouldPerformCustomAction(item, kuberesource.PersistentVolumeClaims, wanted)
		if err != nil || ours {
			return decision{ours, actionCustom, wanted, ours}, err
		}
	}
	return decision{}, nil
}

// failedReads remembers the first Get that failed. If Velero's helper cannot read a
// PersistentVolume, it reports that no policy matches. A volume of ours would then be missing
// in the backup, silently.
type failedReads struct {
	client.Client
	first error
}

// Get implements client.Client.
func (r *failedReads) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	err := r.Client.Get(ctx, key, obj, opts...)
	if err != nil && r.first == nil {
		r.first = fmt.Errorf("get %T %s: %w", obj, key, err)
	}
	return err
}
